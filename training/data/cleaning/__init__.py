"""What `./vc clean` does to a folder of videos before shards are written, in this order: `scenes` splits each video at
its cuts and measures the clips, `rules` says which clips are dropped and why, `captioner` describes the others if no
captions exist, and `results` writes the list, the report and the contact sheet."""
