"""Sources of images: folders, webdataset tars and parquet files."""
