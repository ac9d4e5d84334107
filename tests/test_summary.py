"""A network's summary: true in every form, and safe to print."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

import nnbackend as nb


@pytest.fixture
def net():
    net = nb.Network([30, 16, 8, 1], hidden=["relu", "tanh"], dropout=[0.25, 0.0])
    return net.standardize(np.random.default_rng(0).normal(size=(9, 30)))


def test_the_summary_says_what_the_network_is(net):
    summary = net.summary()
    assert [layer.shape for layer in summary.layers] == [W.shape for W in net.weights]
    assert [layer.activation for layer in summary.layers] == ["relu", "tanh", "sigmoid"]
    assert [layer.dropout for layer in summary.layers] == [0.25, 0.0, 0.0]
    assert sum(layer.n_parameters for layer in summary.layers) == net.n_parameters
    for layer, W, b in zip(summary.layers, net.weights, net.biases, strict=True):
        assert layer.n_parameters == W.size + b.size
    assert (summary.n_parameters, summary.n_bytes) == (net.n_parameters, net.parameters.nbytes)
    assert (summary.dtype, summary.device) == ("float32", "cpu")
    assert summary.standardized == ("features",)


def test_the_table_is_plain_text(net):
    assert str(net.summary()) == repr(net.summary())
    assert repr(net.summary()).splitlines() == [
        "layer     shape     activation  dropout  parameters",
        "---------------------------------------------------",
        "hidden 1  30 -> 16  relu           0.25         496",
        "hidden 2  16 -> 8   tanh                        136",
        "output    8 -> 1    sigmoid                       9",
        "---------------------------------------------------",
        "total                                           641",
        "float32 on cpu, 2.504 KiB; standardizes features",
    ]


@pytest.mark.parametrize(
    ("sizes", "dtype", "expected"),
    [
        ([1, 1], "float64", "float64 on cpu, 16 bytes; standardizes nothing"),
        ([1023, 256], "float32", "float32 on cpu, 1 MiB; standardizes nothing"),
    ],
)
def test_memory_is_said_in_a_unit_that_suits_it(sizes, dtype, expected):
    assert str(nb.Network(sizes, dtype=dtype).summary()).splitlines()[-1] == expected


def test_a_standardized_target_is_said():
    net = nb.Network([1, 1], output="identity").standardize([[0.0], [1.0]], [0.0, 2.0])
    assert str(net.summary()).endswith("standardizes features and targets")


def test_a_summary_stays_as_it_was(net):
    summary = net.summary()
    text = str(summary)
    net.standardization = None
    net.parameters[...] = 0.0
    assert str(summary) == text
    assert summary == summary  # noqa: PLR0124 - it can be compared
    assert summary != net.summary()


def printed(thing):
    file = io.StringIO()
    Console(file=file, width=100).print(thing)
    return file.getvalue()


def test_rich_prints_a_table_with_the_same_cells(net):
    text = printed(net.summary())
    assert "━" in text
    words = " ".join(text.replace("│", " ").split())
    assert "hidden 1 30 -> 16 relu 0.25 496" in words
    assert "641" in words
    assert words.endswith("float32 on cpu, 2.504 KiB; standardizes features")


class Page(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.text = set(), []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style"}

    def handle_data(self, data):
        self.text.append(data)


def test_a_notebook_shows_a_small_table_without_resources(net):
    source = net._repr_html_()
    assert source == net.summary()._repr_html_()
    page = Page(source)
    assert page.tags == {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"}
    assert {"30 -> 16", "relu", "0.25", "641"} <= set(page.text)
    assert len(source) < 2000


def test_names_are_text_in_every_form():
    odd = nb.Activation("<b>[red]&", lambda _xp, Z: Z, lambda xp, Z, _A: xp.ones_like(Z))
    net = nb.Network([2, 3, 1], hidden=odd)
    page = Page(net._repr_html_())
    assert "b" not in page.tags
    assert "<b>[red]&" in "".join(page.text)
    assert "<b>[red]&" in printed(net.summary())
    assert "<b>[red]&" in str(net.summary())
