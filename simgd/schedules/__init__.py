"""The named schedules, each a few lines on one core; they take plain numbers, never a profile.

=====================================  =====================================================================
`sync`                                 one message after backward, one update after it
`bucketed:BYTES`                       messages of at least BYTES behind backward, one update (DDP, Horovod)
`layerwise[:tensor|:BYTES|:join]`      one message a layer (a tensor, BYTES), each with its own update
`async:D[:BYTES|:all]`                 as bucketed, each update applies the gradient of D iterations ago
`async_layerwise:D|auto`               as layerwise, delayed; `auto` chooses the delay of each layer
=====================================  =====================================================================
"""

from simgd.schedules.named import DEFAULT_SCHEDULES, NAMES, Choice, build, parse

__all__ = ["DEFAULT_SCHEDULES", "NAMES", "Choice", "build", "parse"]
