"""Where a model decides between context and memory: which heads carry the one and the other.

One module for each question, from cheap to exact: what a head writes towards an answer
(`attribution`), what it looks at (`attention`), what changes without it (`patching`), and which
heads JuICE would take (`juice`). `items` makes what they read from conflict cases.

>>> import conflictkit as ck
>>> from conflictkit.mechanics import attribution, items
>>> model = ck.load("atlas")
>>> found, dropped = items.build(model, ck.atlas.cases("train", "resistance")[:40])
>>> attribution.attribution(model, found).shape[1:]  # [items, layers, heads]
torch.Size([6, 8])
"""
