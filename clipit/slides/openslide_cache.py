"""One cache of tiles decoded by openslide for all slides of a process, large enough for wide slides."""

import os
from typing import Any

from clipit.slides.jpeg_tiles import CACHE_BYTES

_caches: dict[int, Any] = {}  # by process id: a forked process must not use a lock that another thread held


def share_cache(openslide: Any, slide: Any) -> None:
    """Let a slide keep its decoded tiles in the cache of this process.

    Openslide's own cache of 32 MiB per slide cannot hold two rows of tiles of a slide more than 16,000 pixels wide, so
    each row of a grid would decode most tiles again. Openslide before version 4 has no other cache.

    Args:
        slide: Open slide.
    """
    process_id = os.getpid()
    try:
        if process_id not in _caches:
            _caches[process_id] = openslide.OpenSlideCache(CACHE_BYTES)
        slide.set_cache(_caches[process_id])
    except openslide.OpenSlideVersionError:
        return
