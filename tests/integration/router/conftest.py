from support.ledger import ledger_dsn
from support.postgres import database_dsn, postgres_server

__all__ = ["database_dsn", "ledger_dsn", "postgres_server"]
