"""Which complaints of a page are reported."""

from types import SimpleNamespace

from tests.web.conftest import Browser, Complaint

THEIRS = Complaint("error", "graph accessed before initialization", "/assets/store.js")
NEW = Complaint("error", "no such file", "/assets/store.js")
OURS = Complaint("error", "no such file", "/extensions/pack/tracks.js")
OUR_WARNING = Complaint("warning", "deprecated", "/extensions/pack/tracks.js")
THEIR_WARNING = Complaint("warning", "deprecated", "/extensions/core/menu.js")


class Played(Browser):
    """A browser with fixed complaints, which counts how often a ComfyUI without the pack is started."""

    def __init__(self, complaints, stock):
        super().__init__(None, "", {}, self._start)
        self.complaints, self.without_pack, self.started = complaints, stock, 0

    def _start(self):
        self.started += 1
        return SimpleNamespace(stop=lambda: None)

    def _play(self, host, scenario, options):
        return None, self.complaints if host is None else self.without_pack


def test_complaints_of_a_page_without_the_pack_are_ignored():
    browser = Played([THEIRS, THEIR_WARNING], [THEIRS])
    assert browser.play("some.js").complaints == browser.play("some.js").complaints == []
    assert browser.started == 1


def test_our_own_complaints_are_always_reported():
    browser = Played([OURS, OUR_WARNING, THEIR_WARNING], [OURS])
    assert browser.play("some.js").complaints == [str(OURS), str(OUR_WARNING)]
    assert browser.started == 0


def test_an_error_that_no_stock_page_has_is_reported():
    assert Played([THEIRS, NEW], [THEIRS]).play("some.js").complaints == [str(NEW)]
