from support.alerts import books
from support.postgres import postgres_server

__all__ = ["books", "postgres_server"]
