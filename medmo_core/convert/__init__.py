"""Data of other tools as records: COCO, YOLO, LLaVA, ShareGPT, tables and DICOM folders."""
