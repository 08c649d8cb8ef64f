"""Token labels: what a teacher saw in each part of an image."""
