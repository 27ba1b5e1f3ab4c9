"""`./vc evaluate`: how well checkpoints obey their conditions, measured on scenes of which everything is known, or by
the general measures on the user's own clips.

Modules: `clips` (the scenes and their conditions), `data` (the user's clips and theirs), `trials` (what is composed),
`processes` (by whom), `objects` and `camera` (what is to be seen in a video), `measures` (their table), `statistics`,
`evaluation` (all of it together), `summary` (in short), `report`.
"""
