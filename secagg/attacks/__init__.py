"""The red team: published attacks on what each party of a round sees, to run against your own model.

Rules:
- An attack is a function `attack(view, knowledge, *, rand) -> result`. The view is exactly what the adversary saw, the
  knowledge what it is assumed to know besides; both are plain frozen values, so that every claim states its adversary.
- Attacks work on the caller's own `nn.Module` and update vectors, and never change either.
- A weak attack makes a defence look good: each attack adapts to the defence as far as its adversary could, and results
  are compared with what the adversary would guess from public data alone.

Each attack is a module, imported by name; they need the extra `torch`. Nothing in the library imports them.
"""
