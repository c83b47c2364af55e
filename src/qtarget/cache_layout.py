"""Names of folders and files in QTARGET_CACHE, and of the locks that hold them.

    QTARGET_CACHE/references/NAME    scores of a reference (qtarget.model.cache)
    QTARGET_CACHE/prepared/NAME      prepared data (qtarget.data.prepared_files)

Nothing here needs torch: commands that list and free caches read it alone.
"""

from __future__ import annotations

REFERENCES, PREPARED = "references", "prepared"
MANIFEST = "manifest.json"
"""Written last: a folder with one is whole."""
PREPARED_FILES = ("train.arrow", "heldout.arrow", "heldout_rows.arrow")
LOCK = ".lock"
"""Held by whoever writes a folder."""
READING = ".reading"
"""Locked, shared, by all that read a cache: `qtarget clean` leaves such a cache."""
BUILDING = ".building"
"""What a build of prepared data has written so far; the next one begins anew."""
