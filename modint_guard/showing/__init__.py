"""An answer as people see it, its words coloured by what gave them: in a terminal and in a notebook."""
