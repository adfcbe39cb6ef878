"""How well subjects are learned: on `mini`, where the truth is known, and as DreamBooth tells."""
