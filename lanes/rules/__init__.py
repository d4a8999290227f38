"""What each kind of layer means for lanes: in which way it can be placed, and whether it can."""
