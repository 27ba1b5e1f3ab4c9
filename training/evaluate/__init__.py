"""`./vc evaluate`: how well checkpoints obey their conditions, measured on scenes of which everything is known.

Modules: `clips` (the scenes and their conditions), `trials` (what is composed), `objects` (what is to be seen in a
video), `measures` (their table), `statistics`, `evaluation` (all of it together), `report`.
"""
