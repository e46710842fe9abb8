"""Cases that go wrong as the environment variable PLANTED says, for the test of the harness."""

import os
import signal
import time

from tests.fuzz.harness import Different


def case(random, folder):
    match os.environ["PLANTED"]:
        case "accepted":
            return True
        case "refused":
            return False
        case "different":
            raise Different("1 is not 2")
        case "traceback":
            raise KeyError("a")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(60)
        case "memory":
            b"1" * (1200 << 20)
            return True
