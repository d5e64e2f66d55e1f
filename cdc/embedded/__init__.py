"""Real PostgreSQL, Kafka and Redis as child processes in a data folder of ours, for a machine without any.

    with Servers(Path(".cdc/servers")) as endpoints:
        psycopg.connect(endpoints.postgres_dsn)

They listen on free ports of 127.0.0.1, remembered in the folder, and never touch servers that already run. They end
with us, even when we are killed. Each keeps its log in `logs/`.
"""

from cdc.embedded.server import Server
from cdc.embedded.servers import NAMES, Endpoints, Servers, stop_running

__all__ = ["NAMES", "Endpoints", "Server", "Servers", "stop_running"]
