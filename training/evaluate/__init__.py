"""`./vc evaluate`: measures how well checkpoints follow their conditions, on synthetic scenes with known contents, or
with the general measures on the user's own clips.

Modules: `examples` (scenes and their conditions), `own_clips` (the user's clips), `trials` (composes), `processes` (in
parallel), `objects` and `camera` (find the object and the background's motion), `measures` (the table of measures),
`statistics`, `evaluation` (runs everything), `summary` (headline figures), `report` (table, JSON and images), `page`
(everything in one HTML file), `clip_list` (the clips by hash), `tracking` (ObjMC), `fvd`, `vbench`.
"""
