"""The few helpers that every room needs, once."""

from __future__ import annotations

from netslim._support.arguments import brief, check_batches, described, expect, is_number, is_whole
from netslim._support.calls import Thing, call_checked, checks_calls
from netslim._support.devices import as_device, own_random_numbers, using_threads
from netslim._support.files import (
    alone_in,
    digest_of_plain,
    is_format,
    named_file,
    remove_leftovers,
    replacing,
    try_lock,
    write_atomic,
)
from netslim._support.names import current_directory_importable, from_module, listed, nearest
from netslim._support.plurals import many
from netslim._support.reading import (
    DEEPEST,
    LARGEST_TEXT,
    first_line,
    opened,
    parse_json,
    read_bytes,
    read_text,
    reason,
    refusing,
    typed,
)

__all__ = [
    "DEEPEST",
    "LARGEST_TEXT",
    "Thing",
    "alone_in",
    "as_device",
    "brief",
    "call_checked",
    "check_batches",
    "checks_calls",
    "current_directory_importable",
    "described",
    "digest_of_plain",
    "expect",
    "first_line",
    "from_module",
    "is_format",
    "is_number",
    "is_whole",
    "listed",
    "many",
    "named_file",
    "nearest",
    "opened",
    "own_random_numbers",
    "parse_json",
    "read_bytes",
    "read_text",
    "reason",
    "refusing",
    "remove_leftovers",
    "replacing",
    "try_lock",
    "typed",
    "using_threads",
    "write_atomic",
]
