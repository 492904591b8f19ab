"""The embedded data set: real CT, MR, retina and microscopy images with questions, boxes, reports and captions."""
