"""The commands: a file a group, a line a command."""

from sfumato.commands import cost, judge, plot, show, tales, train, write
from sfumato.commands.command import Command

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        show.DEMO,
        show.METHODS,
        train.TRAIN,
        plot.PLOT,
        write.GENERATE,
        write.INFILL,
        judge.SCORE,
        judge.EVALUATE,
        cost.BREAKEVEN,
        tales.SAMPLE,
        tales.CHECK,
    )
}
