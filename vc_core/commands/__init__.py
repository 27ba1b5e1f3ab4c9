"""What the commands of `./vc` do, apart from the command line: settings, runs, records, extractions, the doctor."""
