"""monstr's relay, in memory, on the port that is the first argument."""

import asyncio
import sys

from monstr.event.persist_memory import RelayMemoryEventStore
from monstr.relay.relay import Relay

asyncio.run(Relay(RelayMemoryEventStore()).start(host="127.0.0.1", port=int(sys.argv[1])))
