"""Files that clipit writes: artefacts, tables and JSON, written completely or not at all."""
