"""Metrics of several models: one family each, a label that says whose a number is, the process's own once."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.frontend.page.feed import Feed
from disagg.frontend.service import Service
from disagg.frontend.whole import AllModels
from disagg.routing.connections import Connections
from disagg.routing.router import Router


def deployment(*names: str) -> AllModels:
    routers = [Router(Connections(b"s" * 32)) for _ in names]
    coordinators = [Coordinator(router, Limits()) for router in routers]
    first, *more = [(each, router.connections) for each, router in zip(coordinators, routers, strict=True)]
    feed = Feed(", ".join(names), *first, more=more)
    return AllModels(
        [
            Service(model_name=name, router=router, coordinator=each, control=None, group=name, feed=feed)
            for name, router, each in zip(names, routers, coordinators, strict=True)
        ]
    )


async def test_every_number_says_its_model_and_each_family_is_there_once() -> None:
    here, there = deployment("chat", 'odd"name\\'), deployment("chat", 'odd"name\\')
    text = here.metrics([there.figures()]).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    by_name = {family.name: family.samples for family in families}
    assert [sample.labels["model"] for sample in by_name["disagg_requests_live"]] == ["chat", 'odd"name\\']
    assert [sample.labels for sample in by_name["disagg_tasks"]] == [{}], "of the process, not of a model"
    for name, samples in by_name.items():
        assert name in ("disagg_tasks", "disagg_refused") or all("model" in each.labels for each in samples), name


async def test_counts_of_other_frontends_come_to_the_same_model() -> None:
    here, there = deployment("chat", "small"), deployment("chat", "small")
    of_small = there._services[1]._metrics
    of_small._requests.by_labels["finished",] = 3
    text = here.metrics([there.figures()]).decode()
    assert 'disagg_requests_total{model="small",phase="finished"} 3.0' in text
    assert 'model="chat",phase="finished"' not in text
