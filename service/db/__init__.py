"""Database engine, tables, migration, the leader lease."""
