"""What a compiled program takes, as the compiler plans it."""

from __future__ import annotations

from typing import Any


def bytes_of(program: Any) -> dict[str, int]:
    """Bytes on each device by kind; outputs that take the place of arguments count once."""
    m = program.memory_analysis()
    return {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "outputs": m.output_size_in_bytes - m.alias_size_in_bytes,
        "program": m.generated_code_size_in_bytes,
    }
