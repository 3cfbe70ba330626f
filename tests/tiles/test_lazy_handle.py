import os
import pickle
from multiprocessing import get_context

from clipit.images.image_readers import LazyHandle

SHARED = LazyHandle(os.getpid)  # "opening" returns the id of the process


def _opened_by() -> tuple[int, int]:
    return SHARED.get(), os.getpid()


def test_a_forked_process_opens_its_own_handle() -> None:
    assert SHARED.get() == os.getpid()
    with get_context("fork").Pool(1) as pool:
        opener, process = pool.apply(_opened_by)
    assert opener == process != os.getpid()


def test_a_handle_opens_once_and_a_pickled_copy_starts_closed() -> None:
    handle = LazyHandle(object)
    assert handle.get() is handle.get()
    copy = pickle.loads(pickle.dumps(handle))
    assert copy.get() is not handle.get()
