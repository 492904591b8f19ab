"""Image files: decoded to pixels with their geometry, windowed, cropped, resized and cut into patches."""
