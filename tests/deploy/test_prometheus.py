"""The scrape configuration asks the gateway for pages it has, where it listens by default."""

import inspect
from pathlib import Path

import yaml

from modint_server.app import create_app
from modint_server.commands import serve
from modint_server.settings import Settings

CONFIG = Path(__file__).parents[2] / "deploy" / "prometheus.yml"


def test_every_scraped_page_is_a_route_of_the_gateway() -> None:
    jobs = yaml.safe_load(CONFIG.read_text("utf-8"))["scrape_configs"]
    pages = {job["metrics_path"] for job in jobs}
    assert pages == {"/metrics", "/engine/metrics"}
    assert pages <= {getattr(route, "path", None) for route in create_app(Settings()).routes}


def test_the_target_is_the_default_address_of_serve() -> None:
    defaults = {name: given.default for name, given in inspect.signature(serve).parameters.items()}
    jobs = yaml.safe_load(CONFIG.read_text("utf-8"))["scrape_configs"]
    targets = {target for job in jobs for config in job["static_configs"] for target in config["targets"]}
    assert targets == {f"{defaults['host']}:{defaults['port']}"}
