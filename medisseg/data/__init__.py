"""Images and masks: folders as people have them, splits without leaks, augmentation."""
