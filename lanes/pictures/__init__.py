"""Pictures from numbers, drawn with Pillow alone: quick enough for every epoch."""
