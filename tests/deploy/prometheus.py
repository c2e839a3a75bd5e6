"""A real Prometheus as a child, with the rules of deploy/, scraping what it is told to."""

import asyncio
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

from modint_guard.demo.launch import free_port

RULES = Path(__file__).parents[2] / "deploy" / "rules" / "modint.yml"
SPAN = "1h"  # every window: all of the traffic lies in it
PATIENCE_S = 120.0
RECORDED = "modint:flips_examined:increase30m"
Samples = list[tuple[dict[str, str], float]]


class Prometheus:
    """On a free port, unless one is given; ask it with `query`."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._log = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, targets: Mapping[str, Iterable[str]]) -> None:
        """`targets`: job -> addresses. Raises RuntimeError with its last words where it is never ready."""
        jobs = [
            {
                "job_name": job,
                "metrics_path": "/engine/metrics" if job == "vllm" else "/metrics",
                "static_configs": [{"targets": list(addresses)}],
            }
            for job, addresses in targets.items()
        ]
        every = {"scrape_interval": "2s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": [str(RULES)], "scrape_configs": jobs}
        (self._folder / "prometheus.yml").write_text(json.dumps(config), "utf-8")
        found = shutil.which("prometheus")
        if found is None:
            raise RuntimeError("there is no prometheus here: apt-get install prometheus")
        command = [
            found,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def query(self, expr: str, at: float | None = None) -> tuple[str, Samples]:
        """The status of an instant query, and its samples."""
        asked = {"query": expr, **({"time": f"{at:.3f}"} if at is not None else {})}
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/query?{urllib.parse.urlencode(asked)}") as said:
                answer = json.load(said)
        except urllib.error.HTTPError as error:
            with error:
                return f"error: {json.load(error)['error']}", []
        return answer["status"], [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    async def scraped(self, metric: str, times: int) -> None:
        """Until the metric has been scraped so many times."""
        await self._until(f"min(count_over_time({metric}[{SPAN}])) >= {times}")

    async def settled(self) -> float:
        """A moment two scrapes from now, once all that was scraped and recorded up to it has been stored.

        A target's scrapes come one after the other: with a later one stored, none of before is still to come.
        At that moment all targets were up that ever were: one that answers too late has no values. And what
        was recorded last by then was computed from scrapes of now or later: on a busy machine rules wait.
        """
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            now = time.time()
            at = now + 5.0
            await self._until(f"min(timestamp(up)) > {at} and min(timestamp({RECORDED})) > {at}")
            all_up = f"sum(up) >= max_over_time(sum(up)[{SPAN}:1s])"
            in_time = f"min(timestamp({RECORDED})) > {at - 1.5}"
            by_then = f"min(timestamp(up offset 2s)) > {now}"
            asked = f"{all_up} and {in_time} and {by_then}"
            if (await asyncio.to_thread(self.query, asked, at))[1]:
                return at
        raise RuntimeError(f"within {PATIENCE_S:.0f} s there was no moment at which every target answered")

    async def _until(self, expr: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            _, found = await asyncio.to_thread(self.query, expr)
            if found:
                return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"this was not so within {PATIENCE_S:.0f} s: {expr}")

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self._url}/-/ready", timeout=1) as said:
                    if said.status == 200:
                        return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"prometheus did not become ready: {self._log.read_text('utf-8')[-600:]}")
