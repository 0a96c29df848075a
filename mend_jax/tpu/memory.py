"""The memory of a compiled program, as planned by the compiler."""

from __future__ import annotations

from typing import Any


def program_bytes(program: Any) -> dict[str, int]:
    """Return the bytes on each device by kind; outputs that reuse arguments' memory count once."""
    m = program.memory_analysis()
    return {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "outputs": m.output_size_in_bytes - m.alias_size_in_bytes,
        "program": m.generated_code_size_in_bytes,
    }
