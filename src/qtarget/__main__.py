"""`python -m qtarget`, for launchers that start a module: torchrun -m qtarget train …"""

from qtarget.cli import main

if __name__ == "__main__":  # processes that a run starts import this module anew
    main()
