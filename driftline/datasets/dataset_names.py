"""The data sets by name. Kept apart, so that the command line starts without reading any of them."""

from __future__ import annotations

NAMES = (
    "stackoverflow",
    "taobao",
    "collegemsg",
    "fdh",
    "online_retail",
    "foursquare",
    "berka",
    "amazon_titles",
)
