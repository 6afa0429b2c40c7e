"""The red team: published attacks on what each party of a round sees, to run against your own model.

Rules:
- An attack is a function `attack(view, knowledge, *, rand) -> result`. The view is exactly what the adversary saw, the
  knowledge what it is assumed to know besides; both are plain frozen values, so that every claim states its adversary.
- Attacks work on the caller's own `nn.Module` and update vectors, and never change either.
- A weak attack makes a defence look good: each attack adapts to the defence as far as its adversary could, and results
  are compared with what the adversary would guess from public data alone.

| adversary | module | attack |
|---|---|---|
| reads one update or an exact sum | `inversion`, `linear` | pictures, by gradient matching or exactly |
| | `membership` | which of two candidates a client used |
| | `words`, `inversion.infer_labels` | words typed; labels |
| plants a model | `imprint`, `trap` | pictures, one bin or one unit each |
| sends several models | `inconsistency` | a sum that is one client's update |
| sees several rounds | `rounds` | differencing, disaggregation by participation |
| has the published model | `final_model` | membership (loss, LiRA), class inversion |

`views` makes views from real rounds, `outcome` and `scoring` judge, `matrix` runs all against all defences (`secagg
attack all`). The answer of a client that looks at its model is `secagg.linter`.

Each attack is a module, imported by name; they need the extra `torch`. Only the commands `demo` and `attack` import
them.
"""
