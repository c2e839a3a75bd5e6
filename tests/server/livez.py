"""Asks a gateway for /livez again and again until its input ends: `python livez.py HOST PORT PID`.

It prints the most CPU time in seconds that all threads of the gateway took while one answer was waited for,
since on a busy machine the gateway itself may have to wait. In a process of its own nothing else delays it.
"""

import http.client
import select
import sys
import time

PAUSE_S = 0.003


def longest_wait(host: str, port: int, pid: int) -> float:
    """Asks until there is input, or its end."""
    clock = (~pid << 3) | 2  # Linux has a clock of every process
    connection, longest = http.client.HTTPConnection(host, port), 0.0
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        began = time.clock_gettime(clock)
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        longest = max(longest, time.clock_gettime(clock) - began)
    return longest


if __name__ == "__main__":
    print(longest_wait(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
