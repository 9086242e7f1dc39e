from support.postgres import database_dsn, postgres_server

__all__ = ["database_dsn", "postgres_server"]
