"""SwAV: features learned by predicting the cluster of one view of an image from its other views."""
