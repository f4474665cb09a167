"""Everything about models: specs, operators, surgery, the three stages. Knows no service, Ray, SQL or MLflow."""
