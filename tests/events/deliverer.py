"""Delivers events of a state directory until it is killed: ``deliverer.py STATE_DIR HANDLER``."""

import asyncio
import sys
from pathlib import Path

from distrib.events.settings import HandlerSettings
from tests.events.stories import Outbox

if __name__ == "__main__":
    outbox = Outbox(Path(sys.argv[1]))
    settings = HandlerSettings.model_validate_json(sys.argv[2])
    asyncio.run(outbox.deliverer(settings).run())
