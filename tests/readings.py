"""What a reader says of a plain subject, for tests of what is made of it."""

# every attribute but the color
REST = {
    "pattern": "plain",
    "pattern_color": "none",
    "feature": "big",
    "build": "slim",
    "accessory": "none",
    "accessory_color": "none",
    "hair": "none",
    "action": "standing",
}
