"""What waits in a spool, sent to the stores it was measured for: each to its own, whichever that is.

How one store takes what waits for it is store.py's business.
"""

from __future__ import annotations

from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.language import _
from pipeline.track.location import address_of, locate
from pipeline.track.spool import Spool
from pipeline.track.store import Synced, open_store


def send(uri: str | None = None) -> Synced:
    """Send what waits in this machine's spool; idempotent.

    `uri`: only to this store; needed for one whose address holds a password, since that is not kept. A store that
    does not answer is a note, and the others get theirs."""
    place = locate(Tracking(uri=uri))
    waiting = Spool(place.spool, place.shown).pending()
    sent, notes = 0, []
    for shown, experiment in sorted({(item.store, item.experiment) for item in waiting}):
        if uri is not None and shown not in ("", place.shown):
            continue
        count = sum((item.store, item.experiment) == (shown, experiment) for item in waiting)
        address = uri if uri is not None else address_of(shown)
        if address is None and shown:
            notes.append(_("{n} waiting for {store}, whose password is not kept: name it, slackwater sync --store URI."
                           ).format(n=count, store=shown))
            continue
        try:
            synced = open_store(Tracking(uri=address, experiment=experiment or Tracking.experiment)).sync()
        except StoreError as error:
            notes.append(_("{n} waiting: {error}").format(n=count, error=error))
            continue
        sent += synced.sent
        notes += synced.notes
    return Synced(sent, list(dict.fromkeys(notes)))
