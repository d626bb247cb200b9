"""Models as folders, and the object that loads one."""
