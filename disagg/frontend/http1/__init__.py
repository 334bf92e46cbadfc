"""HTTP/1.1 as a server speaks it (RFC 9110, 9112): strict in what it takes, bounded in everything it holds."""

from disagg.frontend.http1.call import App, Call, ClientGone
from disagg.frontend.http1.chunk_writer import ChunkWriter
from disagg.frontend.http1.connection import Connection
from disagg.frontend.http1.door import Door
from disagg.frontend.http1.limits import Limits
from disagg.frontend.http1.refusals import Refusals

__all__ = ["App", "Call", "ChunkWriter", "ClientGone", "Connection", "Door", "Limits", "Refusals"]
