"""Actor and critic: the critic learns by AutoSIBP, the actor by SIBP through the paused critic.

The task has one step: state and action are points, and the reward is higher the nearer the action is to the state
turned by 90 degrees. The critic regresses the reward; its loss is a mean over states, so `loss_average` stays True.
The actor's loss is minus the critic's value. It passes through the critic inside `paused()`, where the critic is an
ordinary network, and then through the actor, whose layers are solved for.

Expected output:

    mean cost of the actor's actions: 1.98 -> 0.19
"""

import torch
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP


def cost(state: Tensor, action: Tensor) -> Tensor:
    """Squared distance from the state turned by 90 degrees; the reward is minus this."""
    return (action - torch.stack([-state[:, 1], state[:, 0]], 1)).square().sum(1)


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))


def main(steps: int = 150, batch: int = 128) -> None:
    torch.manual_seed(0)
    actor, critic = mlp(2, 2), mlp(4, 1)
    actor_optimizer = SIBP(actor, lr=0.3, prox_weight=10.0, solver="cg:2")
    critic_optimizer = AutoSIBP(critic)

    def mean_cost() -> float:
        with torch.no_grad():
            state = torch.randn(1000, 2)
            return cost(state, actor(state)).mean().item()

    first = mean_cost()
    for _ in range(steps):
        state = torch.randn(batch, 2)
        with torch.no_grad():
            action = actor(state) + 0.5 * torch.randn(batch, 2)  # exploration
        pairs, reward = torch.cat([state, action], 1), -cost(state, action)

        def critic_loss(pairs: Tensor = pairs, reward: Tensor = reward) -> Tensor:
            return (critic(pairs).squeeze(1) - reward).square().mean()

        critic_optimizer.zero_grad()
        loss = critic_loss()
        loss.backward()
        critic_optimizer.step(evaluate=critic_loss, loss=loss)

        actor_optimizer.zero_grad()
        with critic_optimizer.paused():
            critic.requires_grad_(False)  # its parameters need no gradients of this loss
            (-critic(torch.cat([state, actor(state)], 1)).mean()).backward()
            critic.requires_grad_(True)
        actor_optimizer.step()
    print(f"mean cost of the actor's actions: {first:.2f} -> {mean_cost():.2f}")


if __name__ == "__main__":
    main()
