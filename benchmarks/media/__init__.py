"""Images and sounds whose true captions are known: what preferences about them teach a tiny model."""
