"""What is done about an alarm: in a real registry, once, whatever is killed or gone in between."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ArtifactError, RegistryError
from pipeline.release.line import Line
from pipeline.release.registry import open_registry
from pipeline.storage import open_storage
from pipeline.watch.alerts import Alert, alert_id, place_of, read_alerts
from pipeline.watch.state import Pending
from pipeline.watch.telling import Teller
from tests.unit.release import lines


class Site:
    """A registry with history (production points to 2, and came from 1), and the alerts of a watch."""

    def __init__(self, folder: Path) -> None:
        self.registry = folder / "registry"
        lines.begin_with_history(str(self.registry), folder / "made")
        self.storage = open_storage(str(folder))
        self.said: list[str] = []

    def line(self) -> Line:
        return open_registry(str(self.registry)).line()

    def teller(self, to: str | None = None) -> Teller:
        return Teller(place_of(self.storage, lines.NAME), self.line, "production", to, self.said.append)

    def alerts(self) -> list[Alert]:
        return read_alerts(self.storage, lines.NAME)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def pending(roll_back: bool = True, **changes: Any) -> Pending:
    about: dict[str, Any] = {
        "id": alert_id("production", 1, 118, "risk-up"),
        "when": "2026-11-20T12:00:00+00:00",
        "line": lines.NAME,
        "alias": "production",
        "version": 2,
        "rule": "risk-up",
        "message": "risk is higher",
        "figures": {"statistic": 31.0},
        "action": "none",
        "action_message": "",
    }
    return Pending(Alert(**(about | changes)), roll_back)


def test_production_goes_back_and_the_alert_names_the_record(site: Site) -> None:
    item = pending()
    told = site.teller().settle(item)
    assert told is not None
    line = site.line()
    assert line.alias("production").version == 1
    record = line.trail.read(line.alias("production").moved_by)
    assert (told.action, told.record) == ("rolled back", record.number)
    assert record.why == "alert production-000001-0000000118-risk-up: risk is higher"
    assert site.alerts() == [told]
    assert (item.told, item.roll_back) == (True, False)
    assert site.said == [f"risk-up: production went back from version 2 to version 1 (record {record.number})"]


def test_a_kill_after_the_roll_back_or_after_the_alert_repeats_neither(site: Site) -> None:
    place = place_of(site.storage, lines.NAME)
    first = site.teller().settle(pending())
    records = site.line().trail.numbers()
    assert site.teller().settle(pending()) == first, "killed after the alert: it is there, and is sent again"
    place.remove(f"{pending().alert.id}.json")
    again = site.teller().settle(pending())
    assert again is not None
    assert first is not None
    assert (again.action, again.record) == ("rolled back", first.record), "killed before it: known by its reason"
    assert site.line().trail.numbers() == records
    assert len(site.alerts()) == 1


def test_without_the_option_nothing_is_moved(site: Site) -> None:
    told = site.teller().settle(pending(roll_back=False))
    assert told is not None
    assert told.action == "none"
    assert site.line().alias("production").version == 2


def test_an_alias_that_points_elsewhere_by_now_is_left_alone(site: Site) -> None:
    site.line().roll_back("production", "reference", why="by hand")
    told = site.teller().settle(pending())
    assert told is not None
    assert told.action == "moved already"
    assert site.line().alias("production").version == 0


def test_to_the_version_that_is_named(site: Site) -> None:
    told = site.teller("reference").settle(pending())
    assert told is not None
    assert told.action_message.startswith("production went back from version 2 to version 0")


def test_a_registry_that_is_gone_is_told_and_tried_again(site: Site) -> None:
    away = site.registry.with_name("away")
    site.registry.rename(away)
    item = pending()
    told = site.teller().settle(item)
    assert told is not None
    assert told.action == "failed"
    assert "there is no registry" in told.action_message
    assert item.roll_back
    assert site.teller().settle(item) is None, "told once"
    shutil.move(away, site.registry)
    later = site.teller().settle(item)
    assert later is not None
    assert (later.rule, later.action) == ("roll-back", "rolled back")
    assert [one.rule for one in site.alerts()] == ["risk-up", "roll-back"]
    assert site.line().alias("production").version == 1
    assert not item.roll_back


def test_after_a_roll_back_there_is_nothing_further_back(site: Site) -> None:
    site.line().roll_back("production", why="by hand")
    told = site.teller().settle(pending(version=1))
    assert told is not None
    assert told.action == "none"
    assert "unless --roll_back_to names it" in told.action_message


def test_a_damaged_alert_is_found(site: Site) -> None:
    site.teller().settle(pending(roll_back=False))
    place = place_of(site.storage, lines.NAME)
    [name] = place.names()
    place.write(name, place.read(name).replace(b"higher", b"lower!"))
    with pytest.raises(ArtifactError, match="is damaged"):
        site.alerts()


def test_what_cannot_be_moved_is_an_error_of_the_registry(site: Site) -> None:
    with pytest.raises(RegistryError):
        site.line().roll_back("production", "9", why="no such version")
    told = site.teller("9").settle(pending())
    assert told is not None
    assert told.action == "failed"
