"""Files that survive a crash: written whole or not at all, published in one step, locked, appended line by line."""
