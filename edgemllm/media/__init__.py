"""Frames, images and times, in constant memory."""

import os

# Read by OpenCV and FFmpeg when they load, so this comes before any module that imports cv2; the user's own setting wins.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
